"""Which signatures and builds are believed: PURE. Bytes and keys in, a judgement out."""
