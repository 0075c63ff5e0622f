"""`bert-serving-benchmark`: what a server delivers under loads of different kinds.

`experiments` says what to measure, `run` does it: a real server in `server_process`, real
clients in `load` and `clients`. `measurement` makes numbers of their calls, `report` and
`plots` make tables and pictures of the numbers.
"""
