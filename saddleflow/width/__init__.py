"""The same A from fewer hidden directions: networks projected or drawn, and flows that grow them as needed."""
