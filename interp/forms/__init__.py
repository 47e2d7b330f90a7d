"""Forms: a method's JSON schema becomes fields, and what a person typed becomes its values.

Pure: no model, no web library. The app's controls, the command line's options and a report spec's
knobs all go through ``parse_values``, so the three faces take the same words and say the same
errors.
"""

from interp.forms.fields import Field, describe, fields_of
from interp.forms.reading import Parsed, errors_by_field, parse_value, parse_values, text_of

__all__ = [
    "Field",
    "Parsed",
    "describe",
    "errors_by_field",
    "fields_of",
    "parse_value",
    "parse_values",
    "text_of",
]
