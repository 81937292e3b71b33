"""The diff-NLA: a diff is explained in words, and rebuilt from them."""
