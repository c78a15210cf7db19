"""A gunicorn configuration that patches before the application is loaded, as gevent requires.

gunicorn's own worker patches after the fork. Objects created before, such as
Django's thread-local connections under ``--preload``, are then shared by all
greenlets, with Django's own engine as well as with ours.
"""

from gevent import monkey

monkey.patch_all()
