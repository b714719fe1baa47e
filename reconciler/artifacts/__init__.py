"""Artifacts on their way: tokens, publishing, copying, signing, verifying. Works on ports alone."""
