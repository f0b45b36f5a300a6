"""Bugs that cost users of other toolkits days, planted one at a time; a named test must turn red."""
