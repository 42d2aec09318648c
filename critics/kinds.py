"""What kinds of critic there are, and what each is asked about."""

from typing import Literal

Kind = Literal["value", "prm", "orm"]
KINDS: tuple[Kind, ...] = ("value", "prm", "orm")
