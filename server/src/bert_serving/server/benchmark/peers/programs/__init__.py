"""Programs that run in other interpreters, where our packages are not installed.

They import each other relatively, what belongs to their peer, and nothing of ours.
`lines` is the conversation that all of them hold, `__main__` starts one of them.
"""
