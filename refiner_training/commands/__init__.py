"""The commands of ``bpr-train``, one light module each: parse, call, print."""
