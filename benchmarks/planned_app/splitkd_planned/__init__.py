"""The demo's task under cut policies that the demo does not offer."""
