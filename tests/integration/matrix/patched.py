"""A gunicorn configuration that patches before the application is loaded, as gevent asks for.

gunicorn's own worker patches after the fork. What was made before, such as
Django's thread-local connections under ``--preload``, is shared by all
greenlets then, with Django's own engine as well as with ours.
"""

from gevent import monkey

monkey.patch_all()
