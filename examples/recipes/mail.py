"""SMTP with the standard library: threads send mail over a few sessions.

``python examples/recipes/mail.py HOST:PORT SENDER RECIPIENT...``
"""

from __future__ import annotations

import smtplib
import sys
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, too
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pooling import Pool


def mail_pool(address: str, **settings: Any) -> Pool[smtplib.SMTP]:
    """Return a pool of SMTP sessions. With a login, call ``starttls`` and ``login`` in ``connect``."""
    host, _, port = address.partition(":")

    def connect() -> smtplib.SMTP:
        return smtplib.SMTP(host, int(port or 25), timeout=10)

    def is_broken(smtp: smtplib.SMTP, error: BaseException) -> bool:
        ended = isinstance(error, smtplib.SMTPResponseException) and error.smtp_code == 421  # "closing"
        return ended or isinstance(error, (OSError, smtplib.SMTPServerDisconnected))

    return Pool(
        connect, close=lambda smtp: smtp.quit(), validate=lambda smtp: smtp.noop()[0] == 250,
        reset=lambda smtp: smtp.rset()[0] == 250, is_broken=is_broken, name="mail",
        **{"max_uses": 100, **settings},  # many servers end a session after that many mails
    )  # fmt: skip


def main() -> None:
    """Send a mail to each recipient."""
    address, sender, *recipients = sys.argv[1:]
    with mail_pool(address, max_size=2) as pool, ThreadPoolExecutor(8) as threads:

        def send(recipient: str) -> str:
            mail = EmailMessage()
            mail["From"], mail["To"], mail["Subject"] = sender, recipient, "Hello"
            mail.set_content("Sent over a pool of sessions.")
            with pool.acquire() as smtp:
                smtp.send_message(mail)
            return recipient

        for recipient in threads.map(send, recipients):
            print(f"sent to {recipient}")
        print(f"{pool.metrics.snapshot().created} sessions")


if __name__ == "__main__":
    main()
