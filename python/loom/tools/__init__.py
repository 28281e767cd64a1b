"""Tools that every app may include: ``web`` (search) and ``weather``.

Each is an App of its own with capabilities; importing one opens no file and no socket.
"""
