"""The diff-NLA: a diff is explained in words, and rebuilt from them."""

from diff_oracle.nla.pair import DiffNLA

__all__ = ["DiffNLA"]
