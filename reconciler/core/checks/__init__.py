"""What must hold between objects. Each check is one small function that yields Findings.

Rules: a check looks at one thing, asks the World and nothing else, and never raises for what a
user wrote. `references` go first: what points nowhere is checked no further. A Finding says what
was asked, what there is, and what to do.
"""
