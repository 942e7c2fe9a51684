"""Many workers on one sweep."""
