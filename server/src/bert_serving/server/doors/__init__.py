"""Who comes in by a listening socket: keys that are allowed, and connections that have shown one.

`door` is what others use; the rest is what it is made of.
"""
