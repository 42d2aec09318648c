"""Saved trees and reports as pages that a browser shows offline."""
