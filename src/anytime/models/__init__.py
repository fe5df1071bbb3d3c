"""Model families, one file each; importing this package registers all of them."""

from anytime.models import anytimenet as anytimenet

__all__ = ["anytimenet"]
