"""The part of PostgREST that Supabase's clients use, at ``/rest/v1``.

A request goes through small steps, one module each::

    routes.py    HTTP: who asks (key, token, role), which table or function, which answer
    request.py   headers: Prefer, Accept, Range, profiles, body
    parse.py     the query string → what to select, filter, order and embed (query.py)
    schema.py    what the database has: relations, foreign keys, functions, roles; reloaded when stale
    watch.py     hears when that is
    read.py      → SQL that reads a relation (or the rows a function or a write returned)
    write.py     → SQL that inserts, updates and deletes
    call.py      → SQL that calls a function
    execute.py   one transaction per request, as the caller's role, with the caller's claims
    sessions.py  which statements a connection has prepared
    errors.py    PostgREST's error bodies and statuses

The database makes the JSON, so bigints stay exact and timestamps are ISO. Names enter a statement from the
schema cache or quoted, values as parameters. Whatever is outside this part is answered with an error that
says so, never with wrong data.
"""

from processor.local.rest.routes import Rest

__all__ = ["Rest"]
