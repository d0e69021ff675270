"""Pure numerical functions: no I/O, no globals, arguments never changed."""
