"""What `scripts/bench` runs: measurements whose results are ratios, each made in one run.

`path` measures what surrounds the model against a bare loop over the same kinds of socket
(`bare_loop`), `embedded` the server against sentence-transformers, `engine` the model alone
against transformers. `check` compares ratios with those in `kept.json`, `goals` with what
the project wants to reach. Servers, matrix products and loads are the benchmark's own.
"""
