"""How plain functions are called: in threads, and in processes that can be killed.

``switchboard`` is at the loop's end of the line to a handler, ``line`` at the handler's; ``context`` is what
the handler sees. ``thread`` and ``processes`` (with ``child`` and ``wire``) are the two ways between them.
"""
