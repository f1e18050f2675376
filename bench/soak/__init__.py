"""A day of a daemon's life in minutes: many lost connections, very many jobs, flat memory.

``worker`` is the daemon that is watched, with its ``handlers``; ``cutter`` the proxy that takes its
connection away; ``census`` what is counted and how it is judged; ``python -m bench.soak`` joins them.
"""
