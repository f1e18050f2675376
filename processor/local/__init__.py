"""Local mode: a Supabase-compatible stack without Docker or an account.

A real PostgreSQL and one gateway for ``/rest/v1``, ``/auth/v1`` and ``/realtime/v1``. It is for development
and tests; production is a Supabase project. Only ``processor.cli`` and the tests import it.
"""
