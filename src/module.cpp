#include "admission/startup_gate.hpp"
#include "admission/transaction_gate.hpp"
#include "coalesce/interceptor.hpp"
#include "coalesce/lazy.hpp"
#include "coalesce/opt_in.hpp"
#include "coalesce/submit.hpp"
#include "pg/compat.hpp"
#include "pg/launcher.hpp"
#include "pg/settings.hpp"
#include "pg/shared.hpp"
#include "replicas/flow.hpp"
#include "replicas/read_your_writes.hpp"
#include "replicas/sampler.hpp"

_Pragma("GCC visibility push(default)") extern "C"
{
    PG_MODULE_MAGIC;
    void _PG_init(void);
}
_Pragma("GCC visibility pop")

    void _PG_init(void)
{
    if (!process_shared_preload_libraries_in_progress)
        ereport(
            ERROR,
            (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
             errmsg("pg_weir must be loaded via shared_preload_libraries"),
             errhint("Add pg_weir to shared_preload_libraries in postgresql.conf and restart the server.")));

    EnableQueryId();
    weir::DefineSettings();
    weir::InstallSharedMemoryHooks();
    weir::InstallTransactionGate();
    weir::InstallFlow();
    weir::InstallStartupGate();
    weir::InstallOptIn();
    weir::InstallInterceptor();
    weir::InstallLazy();
    weir::InstallSubmit();
    weir::InstallReadYourWrites();
    weir::RegisterLauncher();
    weir::RegisterSampler();
}
