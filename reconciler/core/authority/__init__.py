"""Who may change what, decided from signed commits.

`facts.py` holds what a repository says of its commits, `signers.py` who stands behind a key,
`roles.py` and `grants.py` who may do what where, `needs.py` what a change needs, `judge.py` whether
it may be made, `walk.py` all of that from one revision to a later one: with `documents.py` files as
objects, `standing.py` what counts of each, `merges.py` what branches bring in, and `instead.py` a
revision without what was refused.
"""
