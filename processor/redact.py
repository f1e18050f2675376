"""What is never shown: the secrets this process was given, and whatever looks like one.

Logs pass through here as whole lines; messages, before they are stored where a job's owner reads them.
"""

import json
import re
from urllib.parse import quote

HIDDEN = "[redacted]"
_SHORTEST = 8
"""Characters: hiding shorter secrets would mangle words."""

_VALUE = r"[^\s\"'\\&,;<>(){}\[\]]"
# needles, in lower case, come first: a look for them costs a fraction of the pattern
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("eyj",), re.compile(r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*"), HIDDEN),
    (("sb_secret_",), re.compile(r"\bsb_secret_[A-Za-z0-9_-]+"), HIDDEN),
    (
        ("sk-", "sk_", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "akia", "xox", "aiza"),
        re.compile(
            r"\b(?:sk[-_][A-Za-z0-9_-]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
            r"|AKIA[A-Z0-9]{16}|xox[a-z]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,})"
        ),
        HIDDEN,
    ),
    (("whsec_",), re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]{8,}"), HIDDEN),
    (("private key-----",), re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"']*"), HIDDEN),
    (("bearer",), re.compile(r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # the password of a URL: up to the last @ before the path
    (("://",), re.compile(r"(://[^/\s:@\"'\\]*:)[^/\s\"'\\]+(?=@)"), rf"\1{HIDDEN}"),
    # a header, a parameter or a field with a telling name: apikey=…, 'password': '…', (b'apikey', b'…')
    (
        ("key", "token", "secret", "passw", "authorization"),
        re.compile(
            r"((?:api[-_ ]?key|service[-_]role[-_]key|access[-_]token|refresh[-_]token|client[-_]secret"
            r"|jwt[-_]secret|passwo?r?d|authorization)"
            r"(?:\\?[\"']?\s*[:=]\s*|\\?[\"']\s*,\s*)(?:b(?=[\"']))?\\?[\"']?(?:(?:bearer|basic)\s+)?+)"
            + _VALUE
            + "{4,}",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)

_known: set[str] = set()


def remember(*secrets: str) -> None:
    """Hide these from now on, wherever :func:`redact` is asked; what is too short for a secret is not."""
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            # as it is, as a part of a URL, and as JSON writes it
            _known.update({secret, quote(secret, safe=""), json.dumps(secret)[1:-1]})


def redact(text: str) -> str:
    """Return ``text`` with every secret replaced by ``[redacted]``."""
    for secret in _known:
        text = text.replace(secret, HIDDEN)
    lowered = text.lower()
    for needles, pattern, replacement in _PATTERNS:
        for needle in needles:
            if needle in lowered:
                text = pattern.sub(replacement, text)
                break
    return text
