# pg_weir. `make demo`, `make check` and `make deps` need nothing but make and apt; the rest is PGXS.
#
#   make                 build against PG_CONFIG's server (15 to 18)
#   make install         into that server
#   make installcheck    pg_regress alone, against the installed server: it must run with pg_weir preloaded
#   make check           everything there is to check; ONLY=unit,regress,… for some of it
#   make check-faults    the checker of coalesced writes through 200 kills: about ten minutes
#   make check-patroni   failover and switchover under Patroni from Debian: about a minute
#   make demo            a storm, without and with pg_weir; KEEP=1 leaves the server up

GOALS_WITHOUT_PGXS = demo check check-faults check-patroni deps

ifneq ($(filter $(GOALS_WITHOUT_PGXS),$(MAKECMDGOALS)),)

demo:
	@scripts/demo

check:
	@scripts/check $(ONLY)

check-faults:
	@KILLS=$${KILLS:-200} TAP=210 TAP_SECONDS=3600 scripts/check tap

check-patroni:
	@test/patroni

deps:
	@scripts/deps build check demo

.PHONY: $(GOALS_WITHOUT_PGXS)

else

MODULE_big = pg_weir
EXTENSION = extension/pg_weir
DATA = $(wildcard extension/pg_weir--*.sql)
# The listener, which is most of the library, is linked last: what sessions run lies together, on fewer pages.
LISTENER = src/http/listener
SOURCES = $(sort $(filter-out $(LISTENER).cpp,$(wildcard src/*.cpp src/*/*.cpp))) $(LISTENER).cpp
OBJS = $(SOURCES:.cpp=.o)
EXTRA_CLEAN = $(OBJS:.o=.d)
REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
REGRESS_OPTS = --load-extension=pg_weir

PG_CONFIG ?= pg_config
PG_CXXFLAGS = -std=gnu++17 -Wall -Wextra -Werror -fno-exceptions -fno-rtti -fvisibility=hidden -fno-lto -MMD -MP
# PostgreSQL was configured with g++, whose names for warnings clang++ does not all know.
PG_CXXFLAGS += -Wno-unknown-warning-option
PG_CPPFLAGS = -Isrc -isystem $(shell $(PG_CONFIG) --includedir-server)
# C++ bitcode: PGXS would compile it with a clang that does not get our flags.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(PGXS),)
$(error $(PG_CONFIG) does not run; `make deps` installs PostgreSQL 15 and what else is missing, or set PG_CONFIG)
endif
include $(PGXS)

ifeq ($(filter 15 16 17 18,$(MAJORVERSION)),)
$(error pg_weir needs PostgreSQL 15 to 18, $(PG_CONFIG) is of $(VERSION))
endif

# The one file where exceptions are at home (Boost's, which end there). Optimising all of Beast takes long and gains nothing.
$(LISTENER).o: override CXXFLAGS += -fexceptions -frtti -O1

# Link as C++.
override COMPILER = $(CXX) $(CXXFLAGS)
# Debian builds for link-time optimisation, which helps nobody here and triples the build.
override CFLAGS := $(filter-out -flto% -ffat-lto-objects,$(CFLAGS))
override CXXFLAGS := $(filter-out -flto% -ffat-lto-objects,$(CXXFLAGS))
override LDFLAGS := $(filter-out -flto% -ffat-lto-objects,$(LDFLAGS))

-include $(OBJS:.o=.d)

endif
