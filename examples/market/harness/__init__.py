"""What stands around the application: starts it, drives load, breaks something, checks every row.

``command.py`` has the options and the steps; ``stage.py`` the processes and files, and removes them;
``load.py`` the clients; ``check.py`` what must be right in the end; ``faults.py`` what ``--break`` does;
``story.py`` tells what happens then; ``relay.py`` stands between the application and PostgreSQL for that.
"""
