"""Version 1 of the data plane's schema and its generated stubs (`make stubs` renews them)."""
