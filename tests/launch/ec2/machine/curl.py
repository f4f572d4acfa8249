"""As much of curl as the boot script uses, over real HTTP."""

import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

method, headers, url = "GET", {}, ""
words = iter(sys.argv[1:])
for word in words:
    if word == "-X":
        method = next(words)
    elif word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    elif word in {"--retry", "--max-time"}:
        next(words)
    elif not word.startswith("-"):
        url = word
try:
    with urlopen(Request(url, method=method, headers=headers), timeout=60) as answer:
        sys.stdout.write(answer.read().decode())
except HTTPError as error:
    sys.exit(f"curl: ({error.code})")
