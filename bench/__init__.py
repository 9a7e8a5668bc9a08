"""`make bench`: CloudStore beside its peers, on this machine. docs/performance.md says what each number means."""
