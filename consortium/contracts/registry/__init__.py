"""Who is who and what hangs where: connections, roles, grid, delegation."""
