# heddle: the only build system. `make show` prints the configuration, `make help` the targets.
PREFIX ?= /usr/local
DESTDIR ?=
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
PKG_CONFIG ?= pkg-config
OPT ?= -O3 -march=x86-64-v3
WERROR ?= 0
SAN ?=
RANKS ?= 1 2 4
comma := ,

VERSION := $(shell sed -n 's/.*HD_VERSION_STRING "\(.*\)"/\1/p' include/heddle/version.h)
VARIANT := $(if $(SAN),$(subst $(comma),-,$(SAN)),release)
BUILD := build/$(VARIANT)

# What the build needs; a missing one stops it with its name.
modules := jansson libxxhash libpng ompi-c
have_modules := $(shell $(PKG_CONFIG) --exists $(modules) && echo yes)
have_dnnl := $(shell printf '\#include <dnnl.h>\nint main(void){return 0;}' | $(CC) -x c - -ldnnl -o /dev/null 2>/dev/null && echo yes)
GEMM ?= $(if $(have_dnnl),dnnl,cblas)
gemm_flags_dnnl := -DHDI_GEMM_DNNL
gemm_libs_dnnl := -ldnnl
gemm_flags_cblas := -DHDI_GEMM_CBLAS
gemm_libs_cblas := -lblas

CPPFLAGS += -Iinclude -Ilib -I. -D_GNU_SOURCE $(gemm_flags_$(GEMM))
module_cflags := $(patsubst -I%,-isystem %,$(shell $(PKG_CONFIG) --cflags $(modules) 2>/dev/null))
warnings := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
            -Wvla -Wundef -Wformat=2 -Wno-format-nonliteral
ALL_CFLAGS := -std=c11 $(OPT) -g -fPIC -fvisibility=hidden -pthread $(warnings) $(module_cflags) \
              $(if $(filter 1,$(WERROR)),-Werror) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) $(CFLAGS)
LIBS := $(shell $(PKG_CONFIG) --libs $(modules) 2>/dev/null) $(gemm_libs_$(GEMM)) -lm -lpthread
ALL_LDFLAGS := $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)

lib_sources := $(wildcard lib/*/*.c lib/backend/cpu/*.c comm/*.c parallel/*.c)
lib_objects := $(lib_sources:%.c=$(BUILD)/%.o)
launcher_objects := $(patsubst %.c,$(BUILD)/%.o,$(wildcard launcher/*.c))
support_objects := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))
test_programs := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/check_*.c tests/multi/check_*.c))
example_programs := $(patsubst %.c,$(BUILD)/%,$(wildcard examples/*.c)) $(patsubst %.cc,$(BUILD)/%,$(wildcard examples/*.cc))
objects := $(lib_objects) $(launcher_objects) $(support_objects) $(test_programs:=.o)

all: $(BUILD)/libheddle.so $(BUILD)/libheddle.a $(BUILD)/heddle $(BUILD)/heddle-run

ifneq ($(have_modules),yes)
$(error heddle needs $(modules) (pkg-config names); ./bootstrap installs them or names the packages)
endif

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libheddle.a: $(lib_objects)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/libheddle.so: $(lib_objects) lib/heddle.map
	$(CC) -shared -Wl,-soname,libheddle.so.0 -Wl,--version-script=lib/heddle.map $(ALL_LDFLAGS) $(lib_objects) $(LIBS) -o $@
	ln -sf libheddle.so $(BUILD)/libheddle.so.0

$(BUILD)/heddle: $(launcher_objects) $(BUILD)/libheddle.a
	$(CC) $(ALL_LDFLAGS) $^ $(LIBS) -o $@

$(BUILD)/heddle-run: launcher/heddle-run
	@mkdir -p $(@D)
	install -m 755 $< $@

# Tests see the internals, so they link the archive.
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(support_objects) $(BUILD)/libheddle.a
	$(CC) $(ALL_LDFLAGS) $^ $(shell $(PKG_CONFIG) --libs check) $(LIBS) -o $@

tests: $(test_programs)

.PHONY: all tests clean show
clean:
	rm -rf build

show:
	@echo "VERSION=$(VERSION) CC=$(CC) OPT=$(OPT) GEMM=$(GEMM) SAN=$(SAN) BUILD=$(BUILD) LIBS=$(LIBS)"

.SECONDARY:
-include $(objects:.o=.d)
