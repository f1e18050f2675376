"""Real daemons, a real stack, and everything that can go wrong between and below them.

``./scripts/chaos --help`` runs a mix of faults; the tests beside it run each fault by itself. A creator makes
jobs, daemons do them, a witness outside sees what the handlers really did, and when all is calm a judge
compares the database, the witness and what was acknowledged.
"""
