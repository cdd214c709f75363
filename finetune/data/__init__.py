"""Alpaca-format data: read, checked, put into a template, tokenized."""
