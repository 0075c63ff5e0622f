"""The gateway for clients of bert-as-service 1.10, which speak its protocol unchanged.

A client pushes four frames to one port and gets its answer from the other, where it has
subscribed to the identity it gave itself:

    in    identity, JSON (a list of texts or of token lists) or a command, request id, rows
    out   identity, JSON {dtype, shape, tokens}, the array's bytes, request id
          identity, JSON, request id                        (SHOW_CONFIG, SHOW_STATUS)

What that protocol cannot do, this gateway cannot either: whoever reaches the ports can read
every answer, a subscription to `1` also gets what is for `10` (the default identities are
random), and a request that is lost on the way is lost.
"""
