"""edged's snapshots against the real Wizer's: one package, so that its parts can share names."""
