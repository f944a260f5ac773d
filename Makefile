# heddle: the only build system. `make help` lists the targets, `make show` prints the configuration.
PREFIX ?= /usr/local
DESTDIR ?=
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
CXX := $(if $(filter default,$(origin CXX)),g++,$(CXX))
PKG_CONFIG ?= pkg-config
OPT ?= -O3 $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v3)
WERROR ?= 0
SAN ?=
RANKS ?= 1 2 4
V ?=
comma := ,
hash := \#

VERSION := $(shell sed -n 's/.*HD_VERSION_STRING "\(.*\)"/\1/p' include/heddle/version.h)
SONAME := libheddle.so.$(basename $(VERSION))
VARIANT := $(if $(SAN),$(subst $(comma),-,$(SAN)),release)
BUILD := build/$(VARIANT)

# What the build needs; a missing one stops it with its name.
modules := jansson libxxhash libpng ompi-c
have_modules := $(shell $(PKG_CONFIG) --exists $(modules) 2>/dev/null && echo yes)
have_dnnl := $(shell echo '$(hash)include <dnnl.h>' | $(CC) -E -x c - >/dev/null 2>&1 && echo yes)
GEMM ?= $(if $(have_dnnl),dnnl,cblas)
gemm_flags_dnnl := -DHDI_GEMM_DNNL
gemm_libs_dnnl := -ldnnl
gemm_flags_cblas := -DHDI_GEMM_CBLAS
gemm_libs_cblas := -lblas

# GIFs need libcgif; without it they are left out, and `make` says so. CGIF=0 leaves them out.
CGIF ?= $(if $(shell echo '$(hash)include <cgif.h>' | $(CC) -E -x c - >/dev/null 2>&1 && echo yes),1,0)
cgif_flags_1 := -DHDI_CGIF
cgif_libs_1 := -lcgif

# The GPU backend needs nvcc and the headers of cuDNN and NCCL; without one of them it is left out, and
# `make` says so. CUDA=0 leaves it out, CUDA=1 insists. ARCHS: compute capabilities without the dot,
# the last one as PTX, too; or native: that of the GPU at hand.
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v nvcc 2>/dev/null)))
NVCC ?= $(CUDA_HOME)/bin/nvcc
ARCHS ?= 80 86 89 90
cuda_include := $(patsubst %,-isystem %/include,$(filter-out /usr,$(CUDA_HOME)))
cuda_header = $(shell echo '$(hash)include <$(1)>' | $(CC) -E $(cuda_include) -x c - >/dev/null 2>&1 || echo $(1))
cuda_missing := $(strip $(if $(wildcard $(NVCC)),,nvcc) $(call cuda_header,cudnn.h) $(call cuda_header,nccl.h))
# Sanitizers and CUDA's libraries do not mix. Some systems have a folder in CUDA.
ifeq ($(filter 0 1,$(CUDA)),)
override CUDA := $(if $(SAN)$(cuda_missing),0,1)
cuda_is_auto := yes
endif
ifeq ($(CUDA),1)
ifneq ($(cuda_missing),)
$(error CUDA=1 needs $(cuda_missing); CUDA_HOME=$(CUDA_HOME))
endif
cuda_cflags := -DHDI_CUDA $(cuda_include)
cuda_folder := $(addsuffix /lib64,$(filter-out /usr,$(CUDA_HOME)))
cuda_libs := $(addprefix -L,$(cuda_folder)) $(addprefix -Wl$(comma)-rpath$(comma),$(cuda_folder)) \
             -lnccl -lcublasLt -lcudart -lstdc++
endif
gencode := $(if $(filter native,$(ARCHS)),-arch=native,$(foreach arch,$(ARCHS),-gencode arch=compute_$(arch)$(comma)code=sm_$(arch)) \
           -gencode arch=compute_$(lastword $(ARCHS))$(comma)code=compute_$(lastword $(ARCHS)))

export CUDA ARCHS # for the scripts among the tests, which call make

# Each device has a folder under lib/backend.
backends := cpu $(if $(filter 1,$(CUDA)),cuda)
transports := $(if $(filter 1,$(CUDA)),nccl)

CPPFLAGS += -Iinclude -Ilib -I. -D_GNU_SOURCE $(gemm_flags_$(GEMM)) $(cgif_flags_$(CGIF))
module_cflags := $(patsubst -I%,-isystem %,$(shell $(PKG_CONFIG) --cflags $(modules) 2>/dev/null)) $(cuda_cflags)
warnings := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wvla -Wundef -Wformat=2 -Wno-format-nonliteral
c_warnings := -Wstrict-prototypes -Wmissing-prototypes
common_flags := $(OPT) -g -fno-math-errno -fno-trapping-math -fPIC -fvisibility=hidden -pthread $(warnings) \
                $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
werror := $(if $(filter 1,$(WERROR)),-Werror)
ALL_CFLAGS := -std=c11 $(common_flags) $(c_warnings) $(module_cflags) $(CFLAGS)
ALL_CXXFLAGS := -std=c++17 $(common_flags) $(CXXFLAGS)
# What the host compiler is told through nvcc; its own -Wpedantic and -Wconversion do not fit CUDA's headers.
ALL_NVCCFLAGS := -std=c++17 -O3 -lineinfo $(gencode) -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra \
                 $(if $(werror),-Werror all-warnings) $(NVCCFLAGS)
LIBS := $(shell $(PKG_CONFIG) --libs $(modules) 2>/dev/null) $(gemm_libs_$(GEMM)) $(cgif_libs_$(CGIF)) $(cuda_libs) -lm -lpthread
ALL_LDFLAGS := $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)

lib_sources := $(wildcard lib/*/*.c lib/jobs/*/*.c $(backends:%=lib/backend/%/*.c) comm/*.c $(transports:%=comm/%/*.c) parallel/*.c)
kernel_sources := $(wildcard $(backends:%=lib/backend/%/*.cu))
lib_objects := $(lib_sources:%.c=$(BUILD)/%.o) $(kernel_sources:%=$(BUILD)/%.o)
launcher_objects := $(patsubst %.c,$(BUILD)/%.o,$(wildcard launcher/*.c))
support_objects := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c $(if $(filter 1,$(CUDA)),tests/gpu/hdt_*.c)))
gpu_support := $(if $(filter 1,$(CUDA)),$(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/gpu/hdt_*.c)))
test_programs := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/check_*.c tests/multi/check_*.c \
                 $(if $(filter 1,$(CUDA)),tests/gpu/check_*.c tests/gpu/speed*.c)))
example_programs := $(addprefix $(BUILD)/,$(basename $(wildcard examples/*.c examples/*.cc)))
programs := $(if $(launcher_objects),$(BUILD)/heddle) $(BUILD)/heddle-run
objects := $(lib_objects) $(launcher_objects) $(support_objects) $(test_programs:=.o) $(example_programs:=.o)

.PHONY: all tests examples check lint format docs bench bench-gpu check-gpu demo demo-text install uninstall clean show help force
all: $(BUILD)/libheddle.so $(BUILD)/libheddle.a $(programs) ## libraries and programs
ifneq ($(CUDA),1)
	@echo "  built without GPUs$(if $(cuda_is_auto),$(if $(cuda_missing),: missing $(cuda_missing)), (CUDA=0))"
endif
ifneq ($(CGIF),1)
	@echo "  built without GIFs: missing cgif.h (Debian: libcgif-dev), or CGIF=0"
endif

ifneq ($(have_modules),yes)
ifneq ($(filter-out clean help show lint format uninstall,$(or $(MAKECMDGOALS),all)),)
$(error heddle needs $(modules) (pkg-config names); ./bootstrap installs them or names the packages)
endif
endif

# One short line for each step; V=1 shows the commands.
say = $(if $(V),,@printf '  %-4s %s\n' $(1) $@;)

# Objects are made anew when the flags change.
$(BUILD)/flags: force
	@mkdir -p $(@D)
	@echo '$(CC) $(CXX) $(CPPFLAGS) $(ALL_CFLAGS) $(CXXFLAGS)' | cmp -s - $@ || \
	    echo '$(CC) $(CXX) $(CPPFLAGS) $(ALL_CFLAGS) $(CXXFLAGS)' >$@

$(BUILD)/kernel-flags: force
	@mkdir -p $(@D)
	@echo '$(NVCC) $(CPPFLAGS) $(ALL_NVCCFLAGS)' | cmp -s - $@ || echo '$(NVCC) $(CPPFLAGS) $(ALL_NVCCFLAGS)' >$@

# Examples see what a user sees: the public headers and the shared library.
$(BUILD)/examples/%.o: CPPFLAGS := -Iinclude

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,cc)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(werror) -MMD -MP -c $< -o $@

$(BUILD)/%.o: %.cc $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,c++)$(CXX) $(CPPFLAGS) $(ALL_CXXFLAGS) $(werror) -MMD -MP -c $< -o $@

$(BUILD)/%.cu.o: %.cu $(BUILD)/kernel-flags
	@mkdir -p $(@D)
	$(call say,nvcc)$(NVCC) $(CPPFLAGS) $(ALL_NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(BUILD)/libheddle.a: $(lib_objects)
	@rm -f $@
	$(call say,ar)$(AR) rcs $@ $^

$(BUILD)/libheddle.so: $(lib_objects) lib/heddle.map
	$(call say,ld)$(CC) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=lib/heddle.map $(ALL_LDFLAGS) $(lib_objects) $(LIBS) -o $@
	@ln -sf libheddle.so $(BUILD)/$(SONAME)

$(BUILD)/heddle: $(launcher_objects) $(BUILD)/libheddle.a
	$(call say,ld)$(CC) $(ALL_LDFLAGS) $^ $(LIBS) -o $@

$(BUILD)/heddle-run: launcher/heddle-run
	@mkdir -p $(@D)
	@install -m 755 $< $@

# Tests see the internals, so they link the archive.
$(BUILD)/tests/gpu/%: $(BUILD)/tests/gpu/%.o $(gpu_support) $(support_objects) $(BUILD)/libheddle.a
	$(call say,ld)$(CC) $(ALL_LDFLAGS) $^ $(shell $(PKG_CONFIG) --libs check) $(LIBS) -o $@

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(support_objects) $(BUILD)/libheddle.a
	$(call say,ld)$(CC) $(ALL_LDFLAGS) $^ $(shell $(PKG_CONFIG) --libs check) $(LIBS) -o $@

$(BUILD)/examples/%: $(BUILD)/examples/%.o $(BUILD)/libheddle.so
	$(call say,ld)$(if $(wildcard examples/$*.cc),$(CXX),$(CC)) $(ALL_LDFLAGS) $< -L$(BUILD) -lheddle -lm -Wl,-rpath,'$$ORIGIN/..' -o $@

tests: $(test_programs) ## test programs
examples: $(example_programs) ## example programs

# The driver runs the scripts under tests/scripts too: lint and install are among them.
check: all tests examples ## build and run every test; ONLY=pattern picks some
	@CC='$(CC)' CXX='$(CXX)' SAN='$(SAN)' RANKS='$(RANKS)' tests/run.sh $(BUILD) $(ONLY)

# One GPU will do: ranks share it. HEDDLE_TRANSPORT is nccl or staged.
check-gpu: all tests ## the suite on the GPU; NP='2 4 8', ONLY=pattern, PART=K/N, SANITIZER=memcheck|racecheck
	@HEDDLE_DEVICE=cuda NP='$(NP)' PART='$(PART)' SANITIZER='$(SANITIZER)' PATH="$$PATH:$(CUDA_HOME)/bin" CC='$(CC)' CXX='$(CXX)' \
	    SAN='$(SAN)' tests/run.sh $(BUILD) $(ONLY)

bench-gpu: all $(if $(filter 1,$(CUDA)),$(BUILD)/tests/gpu/speed_block) ## speed on the GPU beside PyTorch: GPT-2, video
	@HEDDLE_DEVICE=cuda tools/bench_gpu.sh $(BUILD)
	@tools/bench_video.sh $(BUILD)

lint: ## rules of the house that a compiler does not check
	@CC='$(CC)' CXX='$(CXX)' tests/lint/lint.sh

format: ## clang-format 14 on every source file
	find lib comm parallel include launcher examples tests -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' | xargs clang-format -i

docs: $(BUILD)/heddle ## manual page and table of keys, as the program prints them
	$(BUILD)/heddle --man >docs/man/heddle.1
	$(BUILD)/heddle --keys >docs/guide/config-keys.md

bench: all ## speed of training, sampling and start-up
	@tools/bench.sh $(BUILD)

demo: all ## train a small video model on moving shapes with 4 ranks, sample clips of them
	@HEDDLE_BUILD=$(BUILD) tools/demo.sh

demo-text: all ## train a small GPT on text with 4 ranks and let it write; TEXT=path
	@HEDDLE_BUILD=$(BUILD) tools/demo.sh text $(TEXT)

$(BUILD)/heddle.pc: include/heddle/version.h $(BUILD)/flags force
	@printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' 'Name: heddle' \
	    'Description: transformers sharded over many ranks' 'Version: $(VERSION)' \
	    'Libs: -L$${libdir} -lheddle' 'Libs.private: $(LIBS)' 'Cflags: -I$${includedir}' >$@

into := $(DESTDIR)$(PREFIX)
man_pages := $(wildcard docs/man/*.1)
install: all $(BUILD)/heddle.pc ## into $DESTDIR$PREFIX
	install -d $(into)/bin $(into)/lib/pkgconfig $(into)/include/heddle
	install -m 755 $(programs) $(into)/bin
	install -m 644 include/heddle/*.h $(into)/include/heddle
	install -m 644 $(BUILD)/libheddle.a $(into)/lib
	install -m 755 $(BUILD)/libheddle.so $(into)/lib/libheddle.so.$(VERSION)
	ln -sf libheddle.so.$(VERSION) $(into)/lib/$(SONAME)
	ln -sf $(SONAME) $(into)/lib/libheddle.so
	install -m 644 $(BUILD)/heddle.pc $(into)/lib/pkgconfig
	$(if $(man_pages),install -d $(into)/share/man/man1 && install -m 644 $(man_pages) $(into)/share/man/man1)

uninstall: ## what install put there
	rm -f $(addprefix $(into)/bin/,heddle heddle-run) $(into)/lib/pkgconfig/heddle.pc $(into)/lib/libheddle.a
	rm -f $(addprefix $(into)/lib/,libheddle.so $(SONAME) libheddle.so.$(VERSION))
	rm -rf $(into)/include/heddle
	rm -f $(addprefix $(into)/share/man/man1/,$(notdir $(man_pages)))

clean: ## remove build/
	rm -rf build

show: ## the configuration
	@echo "CUDA=$(CUDA) CUDA_HOME=$(CUDA_HOME) ARCHS=$(ARCHS) missing=$(cuda_missing)"
	@echo "VERSION=$(VERSION) CC=$(CC) OPT=$(OPT) GEMM=$(GEMM) SAN=$(SAN) BUILD=$(BUILD) LIBS=$(LIBS)"
	@echo "CPPFLAGS=$(CPPFLAGS)"
	@echo "CFLAGS=$(ALL_CFLAGS)"

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  %-10s %s\n", $$1, $$2 }'
	@echo "variables: CUDA=0|1 ARCHS='80 86 89 90'|native CUDA_HOME PREFIX DESTDIR CC OPT GEMM=dnnl|cblas CGIF=0|1 WERROR=1 SAN=address,undefined RANKS='1 2 4' V=1"

.SECONDARY:
-include $(objects:.o=.d)
