"""One packed bundle made of another: small on the wire, and applied in bounded memory.

The wanted file is a row of segments. Each is the difference to a stretch of the base,
item by item (bytes, or words of two or four bytes), or is told afresh. Differences are
laid apart by the byte of their word, because the upper bytes are nearly always nothing;
what is mostly nothing is told as gaps and values. What comes of it is held to the
signed seal of the wanted file: nothing of a delta or its offer is trusted.
"""
