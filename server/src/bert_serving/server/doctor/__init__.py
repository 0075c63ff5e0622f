"""`bert-serving-doctor`: small checks of what a server needs, and of a server that runs.

A check gathers facts and judges them; the judgements are pure. Each runs in a process of its
own with a time limit, so one that crashes or hangs is a finding, too.
"""
