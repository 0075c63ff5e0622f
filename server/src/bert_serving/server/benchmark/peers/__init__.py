"""The systems that a user would pick instead, each in a process of its own.

`catalogue` knows their names and whether they are installed, `process` talks to one.
`programs` is what runs in their interpreters, and nothing here imports it.
"""
