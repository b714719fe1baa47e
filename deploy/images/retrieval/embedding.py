"""Texts as vectors, so that texts about the same things lie close together.

Words are hashed into a fixed number of places. It knows no synonyms, takes no model, and gives the
same vector for the same text everywhere.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

SIZE = 256
_COMMON = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "by", "do", "does", "for", "from", "has", "have",
     "how", "i", "if", "in", "is", "it", "its", "my", "no", "not", "of", "on", "one", "only", "or",
     "that", "the", "then", "there", "to", "was", "what", "when", "which", "who", "with", "you",
     "your"}
)  # fmt: skip


def embed(text: str) -> list[float]:
    """A vector of length 1, or of zeros when the text has no word that counts."""
    vector = [0.0] * SIZE
    for word, times in Counter(words(text)).items():
        hashed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        vector[hashed % SIZE] += (1 + math.log(times)) * (1 if hashed >> 63 else -1)
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else vector


def words(text: str) -> list[str]:
    """What is compared: without common words, and without the plural's s."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [word.removesuffix("s") for word in found if word not in _COMMON]
