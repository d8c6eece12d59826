"""A server of predictions with a JSON API and a page for a browser: `perceivers serve`."""
