#include "pg/own_worker.hpp"

namespace weir
{

BackgroundWorker OwnWorker(const char *name, const char *function, BgWorkerStartTime start)
{
    BackgroundWorker worker = {};
    snprintf(worker.bgw_name, BGW_MAXLEN, "%s", name);
    snprintf(worker.bgw_type, BGW_MAXLEN, "%s", name);
    snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "%s", "pg_weir");
    snprintf(worker.bgw_function_name, BGW_MAXLEN, "%s", function);
    worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker.bgw_start_time = start;
    worker.bgw_restart_time = BGW_NEVER_RESTART;
    return worker;
}

} // namespace weir
