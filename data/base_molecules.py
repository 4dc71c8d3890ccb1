"""The molecules, dimers, clusters and ions of the base data set, what is held out of training and what is left out."""

from __future__ import annotations

from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors
from rdkit.Chem.MolStandardize import rdMolStandardize

ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br")

# Kept out in any tautomer and protonation: aspirin, acetylacetone, 3-(benzyloxy)pyridin-2-amine, ethanol, methanol,
# glycine, malonaldehyde (enol and diketo form). Clusters of exactly six water molecules are kept out as well.
FORBIDDEN = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "CC(=O)CC(C)=O",
    "CC(=O)C=C(C)O",
    "Nc1ncccc1OCc1ccccc1",
    "CCO",
    "CO",
    "NCC(=O)O",
    "[NH3+]CC(=O)[O-]",
    "O=CC=CO",
    "O=CCC=O",
)

# The molecules of the first version of the set, H, C, N and O: they have two further tasks, see make_base.py.
ORGANIC = """
[H][H] N#N O N C [C-]#[O+] O=C=O C#N OO NN NO [O-][O+]=O N=C=O N=N C=N N=O
CC CCC CCCC CC(C)C CCCCC CC(C)(C)C CCCCCC
C=C CC=C C=CC=C CC=CC C=C(C)C C=C=C CC=C(C)C C=CC=CC=C
C#C CC#C CC#CC C#CC#C C=CC#C CCC#C
C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C1=CCCC1 C1=CCCCC1 C1=CC1 CC1CC1 C1CC2CC1C=C2
CCCO CC(C)O CCC(C)O CC(C)(C)O OCCO C=CCO OCC(O)CO C#CCO NCCO OC1CCCC1
COC CCOC CCOCC C1CO1 C1CCOC1 COCOC C1COCCO1 C=COC COCCO
C=O CC=O CCC=O C=CC=O O=CC=O O=Cc1ccccc1 O=Cc1ccccc1O
CC(C)=O CCC(C)=O CC(=O)C(C)=O C=CC(C)=O O=C1CCCC1 O=C1CCCCC1 CC(=O)c1ccccc1 C=C=O
OC=O CC(=O)O CCC(=O)O C=CC(=O)O OC(=O)C(=O)O CC(=O)C(=O)O OCC(=O)O OC(=O)CC(=O)O
COC=O CC(=O)OC CC(=O)OCC CCC(=O)OC CC(=O)OC=C C=CC(=O)OC CC(=O)Oc1ccccc1 COC(=O)c1ccccc1 O=COc1ccccc1 CCOC=O
Oc1ccccc1 Cc1ccccc1O Oc1ccccc1O Oc1ccc(O)cc1 COc1ccccc1O Nc1ccccc1O
OC(=O)c1ccccc1 OC(=O)c1ccccc1O COC(=O)c1ccccc1O NC(=O)c1ccccc1O OC(=O)c1ccc(O)cc1 OC(=O)c1ccccc1C COc1ccccc1C(=O)O
c1ccccc1 Cc1ccccc1 C=Cc1ccccc1 C#Cc1ccccc1 Cc1ccccc1C
c1ccc2ccccc2c1 c1ccc(-c2ccccc2)cc1 COc1ccccc1 COCc1ccccc1 OCc1ccccc1
NCc1ccccc1 Nc1ccccc1 CNc1ccccc1 [O-][N+](=O)c1ccccc1 N#Cc1ccccc1 CCc1ccccc1 C(Oc1ccccc1)=C c1ccc(Oc2ccccn2)cc1
c1ccncc1 Cc1cccnc1 Nc1ccccn1 Oc1cccnc1 COc1cccnc1 Nc1ncccc1O Nc1ncccc1OC O=c1cccc[nH]1 c1ccc2[nH]ccc2c1
c1cc[nH]c1 c1ccoc1 c1c[nH]cn1 c1cocn1 c1cnoc1 c1cn[nH]c1 c1cncnc1 c1cnccn1 Cn1ccnc1 Cc1ccco1 O=Cc1ccco1 c1nc[nH]n1
CN CCN CNC CN(C)C CCCN C1CCNC1 C1CN1 C=CCN NCCN C1CCNCC1 C1COCCN1
NC=O CC(N)=O CNC=O CNC(C)=O CN(C)C=O CCC(N)=O NC(=O)c1ccccc1 CC(=O)Nc1ccccc1 O=C1CCCN1 CN(C)C(C)=O
NCC(N)=O C[C@H](N)C(=O)O CC#N CCC#N C=CC#N N#CC#N N#CCO CC=N CC=NC NC=N CC(N)=N NC(N)=N
C[N+](=O)[O-] CC[N+](=O)[O-] O=[N+]([O-])O CON=O CC=NO CC(C)=NO CNO CON
NC(N)=O CNC(N)=O COC(=O)OC O=C1OCCO1 NC(=O)OC CC(=O)OC(C)=O O=C1OC(=O)C=C1 O=C1CCCO1 O=C1CCO1 O=C1C=CC(=O)N1
COO COOC CC(=O)OO CNN CN=NC CN(C)N=O [N-]=[N+]=C CN=[N+]=[N-] NC(=O)C=O
""".split()

# Further molecules, with dynamics: H, C, N, O by function and ring, then F, Cl, S, P, Br.
FURTHER = """
CCNCC C1CNCCN1 C1CNC1 C1CC2CCC1C2 O=C1CCC1 CCCCCO c1ccc(-c2ccncc2)cc1 Cc1ccccc1-c1ccccc1 c1ccc(-c2cccs2)cc1
c1csc(-c2cccs2)c1 c1ccc(Oc2ccccc2)cc1 c1ccc(Nc2ccccc2)cc1 c1ccc(N=Nc2ccccc2)cc1 c1ccc2ncccc2c1 c1ccc2[nH]cnc2c1
Nc1ncnc2[nH]cnc12 Nc1cc[nH]c(=O)n1 Cc1c[nH]c(=O)[nH]c1=O Cn1c(=O)c2c(ncn2C)n(C)c1=O c1nn[nH]n1 c1c[nH]nn1
CN1CCCC1c1cccnc1 C1Cc2ccccc2C1 O=C1NC(=O)c2ccccc21 CC(=O)Nc1ccc(O)cc1 NCCc1ccccc1 NCCc1ccc(O)c(O)c1 NCCc1c[nH]cn1
C=C(C)C1CC=C(C)CC1 CC1(C)C2CCC1(C)C(=O)C2 N[C@@H](CO)C(=O)O CC(C)[C@H](N)C(=O)O C[C@@H](O)[C@H](N)C(=O)O
OC(=O)CC[C@H](N)C(=O)O CC(=O)N[C@@H](C)C(=O)NC CNCC(=O)O CN(C)C(=N)NC(=N)N O=C1CCC(=O)N1 COCCOCCOC CC1COC(=O)O1
O=C=C=C=O O=NO CC=C=O [O-][n+]1ccccc1 C=CC(N)=O CC=CC=O O=[N+]([O-])c1ccc(O)cc1 O=[N+]([O-])c1ccc(N)cc1 NC(=O)c1cnccn1
CCOC(=O)c1ccc(N)cc1 CCCC#N OCC(CO)(CO)CO CN1C=CC=C1C=O ON=CC=O NC(=N)N[N+](=O)[O-] C=NN=C FCF FC(F)F FC(F)(F)F CC(F)F
CC(F)(F)F FC(F)(F)C(F)(F)F C=C(F)F FCCO OCC(F)(F)F CC(=O)F O=C(F)F N#CC(F)(F)F Fc1cccc(F)c1 Oc1ccc(F)cc1 Nc1ccc(F)cc1
Fc1cccnc1 O=c1[nH]cc(F)c(=O)[nH]1 NCC(F)(F)F FC(F)(F)c1cccnc1 N[C@@H](Cc1ccc(F)cc1)C(=O)O NC(=O)C(F)(F)F Cl CCl
ClC(Cl)Cl CC(C)Cl ClC=CCl ClCC=C ClCC#C CC(=O)Cl ClCC(=O)O ClCCO ClCC#N ClCCN Clc1ccc(Cl)cc1 Cc1ccccc1Cl Oc1ccccc1Cl
Clc1cccnc1 ClCc1ccccc1 ClC1CC1 OC(Cl)C Cc1cc(O)cc(C)c1Cl Clc1cnccn1 CCCS CC(C)S CCSC C1CCS1 C=S CC(C)=S S=C=S O=C=S
O=S=O O=S(=O)=O CS(C)=O CCS(C)(=O)=O O=S1(=O)CCCC1 CS(N)(=O)=O c1ccsc1 Cc1ccsc1 O=Cc1cccs1 Cc1nccs1 Nc1nccs1 c1cnsc1
CC(=O)SC CNC(N)=S CC(N)=S N=C=S OCCS CSCC[C@H](N)C(=O)O CN(C)C=S C1CSCS1 Nc1ccc(S(N)(=O)=O)cc1 CCCc1cc(=O)[nH]c(=S)[nH]1
O=C1NS(=O)(=O)c2ccccc12 Cc1ncsc1CCO CC(CS)C(=O)N1CCCC1C(=O)O P CPC CP(C)C COP(=O)(OC)OC OP(O)O COP(=S)(OC)OC C1CP1
c1ccpcc1 CP(C)Cl C=CP BrCBr BrC(Br)Br CCCBr CC(C)Br BrCC=C C#CBr CC(=O)Br BrCC(=O)O BrCCO Nc1ccc(Br)cc1 Brc1ccccn1
Brc1cccnc1 CC(=O)CBr OC(=O)c1ccc(Br)cc1 BrCCN ClCBr FCl FC(F)(F)C(Cl)Br FC(F)OC(F)(F)C(F)Cl Fc1ccccc1Cl Fc1ccc(Br)cc1
Fc1cccs1 CS(=O)(=O)Cl ClSCl NS(=O)(=O)C(F)(F)F O=S(=O)(O)C(F)(F)F CSC(F)(F)F Nc1nc(Cl)cs1 CP(=O)(OC)SC Fc1ccc(Cl)nc1
""".split()

# The same without dynamics, which cost as much as all else together.
STATIC = """
CCN(CC)CC CC(C)N CC(C)(C)N NCCCN C1CN2CCC1CC2 CN1CCOCC1 C1OCOCO1 C1COC1 NC1CC1 C1CC11CC1 C12CC1C2 C12C3C4C1C5C2C3C45
C1C2CC3CC1CC(C2)C3 O=C1CC1 C1=CCC1 C=C1CC1 C1=CC=CC1 C=C1C=CC=C1 C1=CC=CCC=C1 c1ccc2cccc-2cc1 c1ccc2cc3ccccc3cc2c1
C1CCCCCC1 CCCCCCCC CC(C)CC(C)(C)C CCCCO c1ccc(-c2ccccn2)nc1 Fc1ccccc1-c1ccccc1 c1ccc(-c2ccco2)cc1 c1ccc(-c2ncc[nH]2)cc1
O=C(c1ccccc1)c1ccccc1 C(=Cc1ccccc1)c1ccccc1 c1ccc2[nH]ncc2c1 c1ncc2nc[nH]c2n1 O=c1cc[nH]c(=O)[nH]1
Nc1nc2[nH]cnc2c(=O)[nH]1 c1ccnnc1 c1ncncn1 NC(=O)c1cccnc1 c1ccc2occc2c1 c1ccc2c(c1)OCO2 O=C1C=CC(=O)C=C1
Nc1ccc(C(=O)O)cc1 COc1cc(C=O)ccc1O C=CCc1ccc(O)c(OC)c1 CC(C)c1ccc(C)cc1O CC1CCC(C(C)C)C(O)C1 CC1=CCC2CC1C2(C)C
OC(=O)[C@@H]1CCCN1 NC(=O)C[C@H](N)C(=O)O CC(C)C[C@H](N)C(=O)O N[C@@H](Cc1ccccc1)C(=O)O N[C@@H](Cc1c[nH]cn1)C(=O)O
NCCCC[C@H](N)C(=O)O CC(=O)NCC(=O)NC NCCC(=O)O NCCCC(=O)O CC(O)C(=O)O OCC(O)C1OC(=O)C(O)=C1O OCC1OC(O)C(O)C(O)C1O
CN1CC(=O)N=C1N O=C1CNC(=O)N1 O=C1CC(=O)NC(=O)N1 [N-]=[N+]=O CN=C=O C[N+](C)(C)[O-] NCC#N N#CCC#N C=C(C)C(=O)OC
COC(C)(C)C O=CC=Cc1ccccc1 OC(=O)C=Cc1ccccc1 O=c1ccc2ccccc2o1 OC(=O)C(O)c1ccccc1 Oc1cccc(O)c1 COc1ccc(N)cc1
OC(=O)c1ccccc1C(=O)O CCC1(C)CC(=O)NC1=O NNC(=O)c1ccncc1 Cc1ncc([N+](=O)[O-])n1CCO CCCC(CCC)C(=O)O CC(C)C=O
CC(C)(C)C(=O)O O=CNC=O NC(=O)C(N)=O CC(=O)NN FF F CF CCF CC(C)F CCCF FCCF FC1CC1 FCC=C C=CF FC=CF FC(F)=C(F)F C#CF
OC(=O)C(F)(F)F O=CF FCC#N CC(=O)C(F)(F)F FCC(N)=O N#CF O=NF FN(F)F Fc1ccccc1 Fc1ccc(F)cc1 FC(F)(F)c1ccccc1 Cc1ccc(F)cc1
Nc1ccccc1F Fc1ccccn1 OC(=O)c1ccc(F)cc1 COC(F)(F)F COC(F)F CNC(=O)C(F)(F)F Fc1c(F)c(F)c(F)c(F)c1F ClCl ClCCl
ClC(Cl)(Cl)Cl CCCl ClCCCl CCCCl C=CCl C=C(Cl)Cl C#CCl O=CCl O=C(Cl)Cl N#CCl ClCC(C)=O ClCC1CO1 Clc1ccccc1 Clc1ccccc1Cl
Nc1ccc(Cl)cc1 Clc1ccccn1 O=Cc1ccc(Cl)cc1 O=C(Cl)c1ccccc1 OCl NCl CN(C)C(=O)Cl COC(=O)Cl ClC1CCCCC1 COCCl CC(Cl)C(=O)O
O=CC(Cl)(Cl)Cl O=c1[nH]c2cc(Cl)ccc2o1 CC(C)(Oc1ccc(Cl)cc1)C(=O)O CC(=O)Nc1ccc(Cl)cc1 S SS CS CCS CSC CCSCC CSSC CSCSC
C1CS1 C1CCSC1 C1CCSCC1 C1CSCCN1 C=CS C=CSC CC=S CS(C)(=O)=O CNS(C)(=O)=O NS(=O)(=O)c1ccccc1 CS(=O)(=O)c1ccccc1
CS(=O)c1ccccc1 Sc1ccccc1 CSc1ccccc1 Cc1cccs1 OC(=O)c1cccs1 c1cscn1 c1nncs1 c1ccc2scnc2c1 c1ccc2sccc2c1 c1cc2ccsc2s1
CC(O)=S OC(=O)CS NC(N)=S CNC(=S)NC NC=S CN=C=S CSC#N CSC=O SCCS NCCS N[C@@H](CS)C(=O)O CS(=O)(=O)O CS(=O)(=O)OC
OS(O)(=O)=O NCCS(=O)(=O)O S=C1NCCN1 S=c1cccc[nH]1 O=C1CSC(=O)N1 C1CSC=N1 CSCC=O OCCSC CSCC#N C1SCSCS1
Cc1ccc(S(N)(=O)=O)cc1 Cn1cc[nH]c1=S S=c1nc[nH]c2nc[nH]c12 C1CSC2=NC(CN12)c1ccccc1 c1ccc(Sc2ccccc2)cc1 CP PP CP(C)(C)=O
CP(C)(C)=S CP(C)O COP(C)C COP(OC)OC CP(=O)(OC)OC OP(O)(O)=O CP(=O)(O)O COP(O)(O)=O FP(F)F ClP(Cl)Cl O=P(Cl)(Cl)Cl
O=P(F)(F)F C=P C#P Pc1ccccc1 CP(C)c1ccccc1 CN(C)P(C)C C1CCPC1 OCP(C)C CCP NCCP CCP(CC)CC C=C(OP(O)(O)=O)C(=O)O
CP(C)(=O)O Br BrBr CBr CCBr C=CBr BrCCBr BrCC#N N#CBr Brc1ccccc1 Cc1ccc(Br)cc1 Brc1ccc(Br)cc1 Oc1ccccc1Br Brc1ccco1
Brc1cccs1 BrCc1ccccc1 BrC1CC1 O=Cc1ccc(Br)cc1 O=C1CCC(=O)N1Br OBr O=c1[nH]cc(Br)c(=O)[nH]1 FC(F)(F)Br FCCBr BrCl FCCCl
FC(F)Cl FC(F)(Cl)Cl FCOC(C(F)(F)F)C(F)(F)F Clc1ccc(Br)cc1 Clc1cccs1 CS(=O)(=O)F O=S(Cl)Cl O=S(F)F CSCl FC(F)(F)S
CC(=O)Nc1nnc(S(N)(=O)=O)s1 CSP(C)C Fc1ccc(S)cc1 Clc1ccc(S)cc1 NC(=O)c1cc(F)ccc1Cl
""".split()

MOLECULES = [*ORGANIC, *FURTHER, *STATIC]

# Rings, chains and central atoms with places for groups, and the groups: what `enumerated` makes molecules of
CORES = """
c1cc({0})ccc1{1} c1ccc({1})c({0})c1 c1cc({0})cc({1})c1 c1nc({0})ccc1{1} c1c({0})cncc1{1} c1nc({0})ncc1{1}
c1oc({0})cc1{1} c1sc({0})cc1{1} c1[nH]c({0})cc1{1} c1sc({0})nc1{1} c1oc({0})nc1{1} c1[nH]c({0})nc1{1} Cn1nc({0})cc1{1}
c1noc({0})c1{1} C1CC1({0}){1} C1CC({0})C1{1} C1CC({0})CC1{1} C1CC({0})C(=O)C1{1} C1CN({0})CC1{1} C1CC({0})OC1{1}
C1OC({0})CO1 C1SCC({0})C1{1} C1C({0})CCN1{1} C1C=C({0})CC1{1} O=C1C=CC({0})N1{1} C1OC1({0}){1} C1N=C({0})CN1{1}
C1COC({0})CN1{1} C1CC({0})=NC1{1} C({0})C{1} C({0}){1} CC({0}){1} C({0})CC{1} C({0})=C{1} C({0})(C)C{1} C({0})#C{1}
C({0})C(C){1} CC({0})=C{1} C({0})OC{1} C({0})SC{1} C({0})NC{1} C(=O)({0}){1} C(=O)({0})C{1} C(=O)({0})N{1}
C(=O)({0})NC{1} C(=O)({0})OC{1} C(=S)({0})N{1} C(=N{0}){1} C(=NO{0}){1} S(=O)(=O)({0}){1} S(=O)({0}){1} S({0})C{1}
S({0})S{1} P({0})(C){1} P(=O)({0})(OC){1} P(=O)(C)({0}){1} P({0})(OC){1} P(=S)({0})(C){1} N(C)({0})C{1} N({0})N{1}
O({0})C{1} N({0})C(=O){1} C({0})C(=O){1} C({0})(F)C{1} C({0})(Cl)C{1}
""".split()
GROUPS = """
C CC C(C)C C=C C#C C#N C(F)(F)F C(F)F CF CCl CBr CO CN CS COC CC#N C=O C(C)=O C(=O)O C(=O)OC C(N)=O C(=O)NC C(=O)N(C)C
N NC N(C)C NC(C)=O NN N=O [N+](=O)[O-] O OC OCC OC(C)=O OC=O S SC SC(C)=O S(C)=O S(C)(=O)=O S(N)(=O)=O P(C)C P(=O)(C)C
F Cl Br C%11CC%11 N%11CC%11 C%11CO%11 c%11ccco%11 c%11cccs%11 c%11cc[nH]c%11 n%11ccnc%11 N%11CCCC%11 C=NO C(=N)N
""".split()
ENUMERATED, FURTHER_ENUMERATED, LARGEST = 1000, 1000, 11  # molecules, more in a file of their own, heavy atoms

VALID_MOLECULES = """
CCCO CCC(C)=O CC(=O)OCC O=Cc1ccccc1O Cc1ccccc1 NCc1ccccc1 c1cn[nH]c1 CCC(N)=O C1=CCCC1 CC=NO
CC(F)F Fc1cccnc1 ClCCO Cc1ccccc1Cl CCSC Cc1nccs1 CS(N)(=O)=O CP(C)C BrCCO CC(C)Br
N[C@@H](CO)C(=O)O c1ccc2[nH]cnc2c1 CC(=O)Nc1ccc(O)cc1 O=C1CCC1 c1ccc(-c2cccs2)cc1
""".split()

TEST_MOLECULES = """
CCC(C)O CCOC C=CC=C CCC=O O=C1CCCC1 CCC(=O)O COC(=O)c1ccccc1O COc1cccnc1 CN(C)C=O CC[N+](=O)[O-] c1cnoc1 CNC(N)=O
OCC(F)(F)F Nc1ccc(F)cc1 C=C(F)F CC(=O)Cl Clc1ccc(Cl)cc1 ClCC#N CS(C)=O CC(=O)SC CNC(N)=S Cc1ccsc1 COP(=O)(OC)OC CPC
Brc1cccnc1 BrCC=C C[C@@H](O)[C@H](N)C(=O)O Nc1ccc(S(N)(=O)=O)cc1 C1CNC1 Cc1ccccc1-c1ccccc1
Cn1c(=O)c2c(ncn2C)n(C)c1=O Nc1cc[nH]c(=O)n1 CC1(C)C2CCC1(C)C(=O)C2
""".split()

# Dimers and clusters of the first version.
DIMERS = """
O.O O.N N.N O.C=O O.NC=O O.OC=O O.C O.c1ccccc1 O.O=C=O O.C#N O.CC(N)=O O.c1ccncc1 O.COC O.CN O.CC=O O.OO
O.Oc1ccccc1 N.C=O N.OC=O N.c1ccccc1 N.NC=O C=O.C=O NC=O.NC=O OC=O.OC=O OC=O.NC=O OC=O.C=O C.C C.N C.c1ccccc1 C.C=C
O=C=O.O=C=O O=C=O.N C=C.C=C C#C.O CC(=O)O.O CC(=O)O.CC(=O)O [H][H].O N#N.O c1cc[nH]c1.O [C-]#[O+].C CNC=O.O CC#N.O
""".split()

# Pairs from the wall to 6 Angstrom: every pair of the small ones, and those listed.
SMALL = "O N C F S Cl P Br CF CCl CBr C=O OC=O".split()
FURTHER_DIMERS = """
O.O O.NC=O NC=O.NC=O OC=O.OC=O C.C C=C.C=C C#C.C#C c1ccccc1.c1ccccc1 c1ccccc1.O c1ccccc1.C c1ccccc1.Cl c1ccccc1.F
c1ccccc1.S c1ccccc1.Br c1ccccc1.P c1ccncc1.Cl c1ccncc1.F CS.O CSC.O CSC.Cl CS.CS S=C=S.O S=C=S.S O=S=O.O O=S=O.N
O=S=O.O=S=O CS(C)(=O)=O.O CC(F)(F)F.O FC(F)F.O FC(F)(F)F.C FC(F)(F)F.FC(F)(F)F ClC(Cl)Cl.O ClC(Cl)Cl.CC(C)=O ClCCl.ClCCl
Fc1ccccc1.O Clc1ccccc1.O Clc1ccccc1.N Brc1ccccc1.O Brc1ccccc1.N BrBr.N ClCl.N ClCl.O FF.O BrBr.O BrBr.C=O ClCl.ClCl
FF.FF BrBr.BrBr CP.O CP(C)(C)=O.O OP(O)(O)=O.O OP(O)(O)=O.OP(O)(O)=O OP(O)(O)=O.N CP.CP c1ccsc1.O c1ccsc1.c1ccsc1
c1cscn1.O CNC(C)=O.O CNC(C)=O.CNC(C)=O CC(N)=O.CC(N)=O CC(=O)O.NC=O CN.CN CN.O CN.OC=O CNC.O CN(C)C.O CN(C)C.OC=O
COC.COC c1cc[nH]c1.c1cc[nH]c1 c1c[nH]cn1.O c1c[nH]cn1.c1c[nH]cn1 O=c1cc[nH]c(=O)[nH]1.O Nc1ncnc2[nH]cnc12.O
Oc1ccccc1.Oc1ccccc1 Oc1ccccc1.N C[C@H](N)C(=O)O.O CC#N.CC#N C[N+](=O)[O-].O O=C=O.O=C=O O=C=O.C [H][H].[H][H] [H][H].C
[H][H].F [H][H].Cl N#N.N#N N#N.Cl [C-]#[O+].O NC(N)=O.O NC(N)=O.NC(N)=O NC(N)=S.O CC.CC CCC.CCC CCCC.O C1CCCCC1.O
C1CCCCC1.C1CCCCC1 C1CO1.O OO.OO NN.O NN.NN CC(C)=O.CC(C)=O CC(C)=O.O OS(O)(=O)=O.O OS(O)(=O)=O.N CS(=O)(=O)O.O
O=[N+]([O-])O.N O=[N+]([O-])O.O CCSC.O CP(C)C.O CC(C)Br.O CC(F)F.O CS(C)=O.O CC(=O)Cl.O C=C(F)F.C CPC.O BrCC=C.O
CNC(N)=S.O
""".split()
VALID_DIMERS = ("NC=O.NC=O", "CCSC.O", "CP(C)C.O", "CC(C)Br.O", "CC(F)F.O", "S.Cl")
TEST_DIMERS = (
    *("O.OC=O", "CS(C)=O.O", "CC(=O)Cl.O", "C=C(F)F.C", "CPC.O", "BrCC=C.O", "CNC(N)=S.O"),
    *("CF.CBr", "c1ccncc1.Cl"),
)

CLUSTERS = ("O.O.O", "O.O.O.O", "N.N.N", "N.N.N.N", "O.O.N", "O.N.N", "O.O.O.N", "O.O.NC=O")
FURTHER_CLUSTERS = """
O.O.O.O.O O.O.O.O.O.O.O O.O.O.O.O.O.O.O F.F.F F.F.F.F F.O.O Cl.O.O Cl.O.O.O Br.O.O S.S.S S.O.O P.O.O C.C.C C.C.C.C
C.O.O.O OC=O.O.O CC(=O)O.O.O NC=O.O.O.O C=O.O.O CN.O.O CNC(C)=O.O.O NC(N)=O.O.O CS.O.O CF.CF.O CCl.CCl.O CBr.O.O
O=S=O.O.O OP(O)(O)=O.O.O OS(O)(=O)=O.O.O c1ccccc1.O.O c1c[nH]cn1.O.O C[C@H](N)C(=O)O.O.O Oc1ccccc1.O.O CC#N.CC#N.CC#N
C=O.C=O.C=O OC=O.OC=O.OC=O Cl.N.O F.N.O Cl.Cl.Cl ClC(Cl)Cl.O.O FC(F)F.O.O COC.O.O OO.O.O N.N.O.O.O O=C=O.O.O
O=C=O.O=C=O.O=C=O C=C.C=C.O N#N.O.O CC(F)F.O.O CS(C)=O.O.O CN(C)C=O.O.O CCCO.O.O
""".split()
VALID_CLUSTERS = ("CC(F)F.O.O", "CCCO.O.O", "Cl.O.O.O")
TEST_CLUSTERS = ("CS(C)=O.O.O", "CN(C)C=O.O.O", "Br.O.O", "O.O.O.O.O")

# Heaps of water molecules: how many, and which of them. None of six, or of five, which are a test.
WATERS = tuple(f"{count} {number}" for number in range(36) for count in (2, 3, 4, 7, 8, 9, 10))

# Neutral groups of ions, started apart; the SCF decides where the charge goes.
IONS = """
[NH4+].[Cl-] [NH4+].[F-] [NH4+].[Br-] [NH4+].[O-]C=O C[NH3+].[O-]C=O C[NH3+].CC(=O)[O-] C[NH3+].[Cl-] C[NH+](C)C.[Cl-]
[OH3+].[OH-] [OH3+].[F-] [OH3+].[Cl-] [OH3+].[Br-] [NH4+].[OH-] [NH4+].[SH-] [NH4+].[O-][N+]([O-])=O
[OH3+].[O-][N+]([O-])=O [NH4+].CS(=O)(=O)[O-] NC(N)=[NH2+].[O-]C=O NC(N)=[NH2+].[Cl-] c1cc[nH+]cc1.[Cl-]
c1c[nH]c[nH+]1.[O-]C=O [NH4+].OP(=O)(O)[O-] [OH3+].OS(=O)(=O)[O-] [NH4+].[Cl-].O [NH4+].[Cl-].O.O [NH4+].[F-].O.O
[OH3+].[Cl-].O.O [OH3+].[Cl-].O.O.O [OH3+].[OH-].O.O.O [OH3+].[F-].O.O [OH3+].[Br-].O.O.O C[NH3+].[O-]C=O.O.O
[NH4+].[O-]C=O.O.O [NH4+].[SH-].O.O C[NH3+].[Br-].O C[C@H]([NH3+])C(=O)[O-].O.O C[C@H]([NH3+])C(=O)[O-].O.O.O
C[PH3+].[Cl-].O C[SH2+].[Cl-].O [NH4+].[S-]C.O
""".split()
VALID_IONS = ("C[NH+](C)C.[Cl-]", "[OH3+].[F-].O.O")
TEST_IONS = ("NC(N)=[NH2+].[Cl-]", "[NH4+].[O-]C=O.O.O", "C[NH3+].[Br-].O")

RADICALS = """
[CH3] [OH] [NH2] [SH] [PH2] [CH]=O C[CH2] C[CH]C C[C](C)C C=[CH] C#[C] C=C[CH2] C#C[CH2] [CH2]F [CH2]Cl [CH2]Br
Cl[C](Cl)Cl F[C](F)F [O]O CO[O] C[NH] C[N]C C[S] CC[S] C[PH] C[C]=O O[C]=O [CH2]C=O [CH2]C#N [CH2]N [CH2]S
[CH2]OC [CH2]C(C)=O C[C](O)C [CH2]c1ccccc1 [O]c1ccccc1 [NH]c1ccccc1 [S]c1ccccc1 c1cc[c]cc1 [CH2]C(=O)O
[CH2]NC=O N[C]=O [O]N=O [O][N+](=O)[O-] [N]=O N#C[S] C[CH]C(=O)O N[CH]C(N)=O C1C[CH]C1 C1[CH]C1 [CH2]C1CC1 O[S]=O
C[S](=O)=O [CH2]P C[P]C CC(=O)[O] [CH2]c1cccnc1 [CH2]CF [CH2]CCl [CH2]CBr F[CH]F Cl[CH]Cl Cl[S] CC(C)[S] C[CH]OC C[CH]NC
C=C[O] CS[CH2]
""".split()
VALID_RADICALS = ("C[CH]OC", "CC(C)[S]", "[CH2]CBr")
TEST_RADICALS = ("[CH2]C1CC1", "[CH2]CF", "C[CH]NC", "CS[CH2]", "[CH2]P")

# Periodic: molecule, "box" or "ice", number of molecules, density in g/cm^3 or constant of cubic ice, temperature.
BOXES = (
    *("O box 8 1.00 300", "O box 8 0.85 500", "O box 8 1.00 700", "O box 8 1.05 400", "O box 8 0.95 400"),
    *("O box 16 1.00 300", "O ice 8 6.35 150", "O ice 8 6.20 250", "O ice 8 6.45 300", "N box 8 0.70 250"),
)
VALID_BOXES = ("O box 8 1.05 400",)
TEST_BOXES = ("O box 8 0.95 400", "O ice 8 6.20 250")


def tautomer(mol: Chem.Mol) -> str:
    """Return the SMILES of the canonical tautomer, neutral, radicals saturated and stereochemistry dropped."""
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetNumRadicalElectrons(0)
        atom.SetNoImplicit(False)
    Chem.RemoveStereochemistry(mol)
    mol = rdMolStandardize.Uncharger().uncharge(Chem.MolFromSmiles(Chem.MolToSmiles(mol)))
    return Chem.MolToSmiles(rdMolStandardize.TautomerEnumerator().Canonicalize(mol))


def check_names(names: list[str]) -> None:
    """Assert that each name is neutral, of the elements covered, and that no part is a form of a forbidden molecule."""
    forbidden = {Chem.CanonSmiles(smiles) for smiles in FORBIDDEN}
    forbidden |= {tautomer(Chem.MolFromSmiles(smiles)) for smiles in FORBIDDEN}
    for name in names:
        assert Chem.GetFormalCharge(Chem.MolFromSmiles(name)) == 0, name
        assert sorted(name.split(".")) != ["O"] * 6, name
    for part in {part for name in names for part in name.split(".")}:
        mol = Chem.MolFromSmiles(part)
        assert {atom.GetSymbol() for atom in mol.GetAtoms()} <= set(ELEMENTS), part
        assert not {Chem.MolToSmiles(mol, isomericSmiles=False), tautomer(mol)} & forbidden, part


def check_trained(names: list[str]) -> None:
    """Assert that no name, nor a part of one, is held out for the valid or the test file, however it is spelled."""
    groups = (*VALID_DIMERS, *TEST_DIMERS, *VALID_CLUSTERS, *TEST_CLUSTERS)
    held = {Chem.CanonSmiles(name) for name in (*VALID_MOLECULES, *TEST_MOLECULES, *groups)}
    for name in names:
        assert not {Chem.CanonSmiles(part) for part in (name, *name.split("."))} & held, name


def check_lists() -> None:
    """Assert that no molecule is listed twice, none is forbidden, and none that is held out is part of training."""
    groups = {*DIMERS, *dimers(), *CLUSTERS, *FURTHER_CLUSTERS, *IONS}
    molecules = (*MOLECULES, *enumerated())
    check_names([*molecules, *groups, *RADICALS])
    for names in (molecules, RADICALS, IONS):
        canonical = [Chem.CanonSmiles(smiles) for smiles in names]
        assert len(set(canonical)) == len(canonical), sorted(canonical)
    for smiles in molecules:
        assert Descriptors.NumRadicalElectrons(Chem.MolFromSmiles(smiles)) == 0, smiles
    for smiles in RADICALS:
        assert Descriptors.NumRadicalElectrons(Chem.MolFromSmiles(smiles)) == 1, smiles
    held = {"valid": {*VALID_MOLECULES}, "test": {*TEST_MOLECULES}}
    assert held["valid"] | held["test"] <= set(MOLECULES)
    assert not held["valid"] & held["test"]
    for name in groups:
        for split in held:
            assert split_of(name) == split or not held[split] & set(name.split(".")), name


def dimers() -> list[str]:
    """Return the pairs of the second version: each pair of the small molecules, and the listed ones."""
    pairs = [f"{a}.{b}" for i, a in enumerate(SMALL) for b in SMALL[i:]]
    return sorted({*pairs, *FURTHER_DIMERS})


@cache
def enumerated() -> tuple[str, ...]:
    """Return molecules of a random core with random groups, none listed or forbidden, the further ones last."""
    rng = np.random.default_rng(17)
    known = {tautomer(Chem.MolFromSmiles(smiles)) for smiles in (*MOLECULES, *FORBIDDEN)}
    found: list[str] = []
    while len(found) < ENUMERATED + FURTHER_ENUMERATED:
        core, groups = CORES[rng.integers(len(CORES))], [GROUPS[place] for place in rng.integers(len(GROUPS), size=2)]
        mol = Chem.MolFromSmiles(core.format(groups[0], groups[1].replace("%11", "%12")))
        if mol is None or mol.GetNumHeavyAtoms() > LARGEST:
            continue
        form = tautomer(mol)
        if form not in known and not Descriptors.NumRadicalElectrons(mol) and not Chem.GetFormalCharge(mol):
            known.add(form)
            found.append(Chem.MolToSmiles(mol))
    return tuple(found)


def crowds() -> list[str]:
    """Return 80 random collections of 4 to 10 atoms, two in five of them hydrogen."""
    rng = np.random.default_rng(7)
    shares = [0.4, *[0.6 / (len(ELEMENTS) - 1)] * (len(ELEMENTS) - 1)]
    return [".".join(sorted(rng.choice(ELEMENTS, rng.integers(4, 11), p=shares))) for _ in range(80)]


def split_of(name: str) -> str:
    """Return the file in which a molecule, group or radical is."""
    if name in {*VALID_MOLECULES, *VALID_DIMERS, *VALID_CLUSTERS, *VALID_IONS, *VALID_RADICALS, *VALID_BOXES}:
        return "valid"
    if name in {*TEST_MOLECULES, *TEST_DIMERS, *TEST_CLUSTERS, *TEST_IONS, *TEST_RADICALS, *TEST_BOXES}:
        return "test"
    return "train"
