"""Models as artefacts: manifest, packing, chunks, digests, trust, and the input recipe.

A leaf: imports no other package of the project. A bundle is one file, an
uncompressed tar of a manifest and what it names; a seal is the signed statement of
its digest and chunks. Nothing is unpacked or loaded before its seal is verified.
"""
