#ifdef POSTGRES_H
#error "this file belongs to the pure library: it must not see a PostgreSQL header"
#endif
