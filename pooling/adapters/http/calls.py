"""What each thread's requests have not read yet.

A response hook runs before requests has read the body of the answer that the
hook is for, so that answer still holds its connection. A request made in the
hook would wait for a connection that its own thread holds. So it reads those
answers first.
"""

from __future__ import annotations

import threading
import weakref

import requests

from .bodies import read_ahead
from .limits import Limits

__all__ = ["Calls"]


class Calls:
    """Requests in progress and answers not yet read, by thread.

    Assumes: getting, setting and deleting a dict's item are atomic.
    """

    def __init__(self) -> None:
        self.requests: dict[int, Limits] = {}  # in progress, by the pool's own sessions
        self.answers: dict[int, weakref.ref[requests.Response]] = {}  # the last one of any other session

    def begin(self, limits: Limits) -> None:
        """Record a request of this thread; the one in whose hook it is made becomes its ``outer``."""
        thread = threading.get_ident()  # looked up at each call: gevent replaces it
        limits.outer, limits.thread = self.requests.get(thread), thread
        self.requests[thread] = limits

    def end(self, limits: Limits) -> None:
        """Undo `begin`, also where an exception interrupted it."""
        if self.requests.get(limits.thread) is not limits:
            return
        if limits.outer is None:
            self.requests.pop(limits.thread, None)
        else:
            self.requests[limits.thread] = limits.outer

    def remember(self, response: requests.Response) -> None:
        """Record an answer that requests reads next, unless a hook makes a request before."""
        thread, answers = threading.get_ident(), self.answers

        def forget(reference: weakref.ref[requests.Response]) -> None:
            if answers.get(thread) is reference:
                answers.pop(thread, None)

        answers[thread] = weakref.ref(response, forget)

    def read_answers(self) -> None:
        """Read the answers whose hooks this thread is in, which frees their connections."""
        thread = threading.get_ident()
        last, limits = self.answers.pop(thread, None), self.requests.get(thread)
        if last is not None:
            read_ahead(last(), stream=False)
        while limits is not None:
            for answer, streamed in limits.answers:
                read_ahead(answer(), streamed)
            limits = limits.outer
