"""Attacks on running servers, one or more for each class of bugs that systems like this one had."""
