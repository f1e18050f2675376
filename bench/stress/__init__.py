"""Opposing clients on one database, killed connections and a crash; then a judge who knows what was promised.

``scripts/stress --seconds 60 --seed 7`` runs it. The clients (``clients``, ``workers``, ``operators``) do
what real ones do, against each other; what the database has acknowledged goes into a ``journal``. ``world``
starts the server, kills connections and crashes it; ``judge`` compares the journal with what is there
at the end.
"""
